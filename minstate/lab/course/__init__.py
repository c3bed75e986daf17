"""What the course brings besides its notebooks: the checks of the build steps, judges of the labs, marks of quizzes."""
