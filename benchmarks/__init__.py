"""What the project costs beside the work itself. What is right or wrong is for the tests."""
