"""What the course's own notebooks need: a thread in which the student builds an engine, step by step."""
