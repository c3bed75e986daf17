"""The doctor: chat templates, checked; and a log of requests, examined for what a prefix cache loses, and why."""
