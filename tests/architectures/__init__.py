"""Every kind of encoder that people convert, tiny and with random weights, through all targets."""
