"""Tasks on clicks: finetuning (step 3), and stage II of the distillation."""
