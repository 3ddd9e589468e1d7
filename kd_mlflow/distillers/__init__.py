"""Distillation methods: the contract, one file a method, and the registry."""
