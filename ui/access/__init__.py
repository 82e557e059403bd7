"""Access to the page: login, request checks, connection limits, the Space."""
