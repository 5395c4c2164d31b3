"""What a learner uses from day to day: watching, hints, comparison, resets, roadmap, doctor."""
