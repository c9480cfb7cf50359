"""What-ifs: a question in each file's name, answered in at most 40 lines by simulating."""
