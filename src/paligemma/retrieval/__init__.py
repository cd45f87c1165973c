"""Documents searched as pictures: ColPali's vectors, late interaction, indexes."""
