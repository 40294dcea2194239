"""Baselines that editing methods are compared with: fine-tuning, LoRA, and the fact in the prompt."""
