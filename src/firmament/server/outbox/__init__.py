"""Out: webhooks, mail and brokers; what is delivered, when again, and what came back (ADR-0017)."""
