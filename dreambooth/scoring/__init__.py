"""Pictures in, numbers out: the starter's own judge, and the measures of the DreamBooth paper."""
