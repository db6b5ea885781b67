"""How this server reaches the web: addresses checked before they are dialled, everything bounded."""
