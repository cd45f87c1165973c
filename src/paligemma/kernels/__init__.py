"""How products and attention are computed: the definition beside its fast routes. Torch only."""
