"""Which updates ask their owner first, what owners answered, and what that means for an offer."""
