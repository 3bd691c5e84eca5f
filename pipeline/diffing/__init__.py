"""Two artifacts of one model, side by side: what became better, worse, larger, slower, and why."""
