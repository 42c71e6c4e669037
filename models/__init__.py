"""Backbones: frozen multimodal language models, how their prompts are built and how they are prefilled and decoded."""
