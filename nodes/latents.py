NODES: list[type] = []
