"""Commands about a living model: a folder that new data comes to."""
