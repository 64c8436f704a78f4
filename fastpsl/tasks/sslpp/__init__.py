"""SSL++: a pretext task with pseudo-labels as a second target."""
