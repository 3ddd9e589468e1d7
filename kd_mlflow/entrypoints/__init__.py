"""One module a command; each reads as the story of that job."""
