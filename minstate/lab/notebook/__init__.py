"""What notebooks need: exercises, widgets, source listings; and what runs, solves, browses and publishes them."""
