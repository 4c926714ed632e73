"""What the report is made of: figures, the latent page, the ablation table, and its layout."""
