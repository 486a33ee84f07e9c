"""Tasks on titles and bodies: post-training (step 1), and stage I of the distillation."""
