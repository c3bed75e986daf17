"""Logs of agents, in the forms that people have them: files, their formats, and the requests in them."""
