"""`guardrail serve`: moderation over HTTP, and a guard in front of a model server."""
