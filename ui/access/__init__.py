"""Who may come in and what may be sent: login, request checks, limits of connections, the Space."""
