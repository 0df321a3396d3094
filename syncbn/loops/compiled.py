"""stub"""
def stages_for(batch, running):
    return None
