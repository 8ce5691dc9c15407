"""HTTP edges of the server; they translate and decide nothing."""
