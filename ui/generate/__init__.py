"""The tab Generate gallery."""
