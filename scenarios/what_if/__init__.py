"""What-ifs: a question in each file's name, answered by simulating."""
