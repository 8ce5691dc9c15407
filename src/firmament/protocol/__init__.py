"""What crosses the wire, as values; golden bytes and JSON Schemas ship beside the code (floor 2)."""
