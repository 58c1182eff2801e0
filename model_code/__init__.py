"""The library: every stage from pictures to a registered, exported model. See docs/architecture.md."""
