"""What minstate makes of published chat templates."""
