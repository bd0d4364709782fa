"""Tasks and suites: where examples are, decoding them once, what a method may see of them."""
