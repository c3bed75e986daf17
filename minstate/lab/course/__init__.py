"""What the course brings besides its notebooks: judges of the labs, and the marking of quizzes."""
