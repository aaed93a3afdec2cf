"""The CAM paper's five runs, each a file that says how it is repeated."""
