"""Second moments of layer inputs and output gradients, and the curvature made of them; modules load torch lazily."""
