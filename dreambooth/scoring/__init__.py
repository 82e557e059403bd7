"""Scoring: from images to numbers, with the starter's judge and the measures of the DreamBooth paper."""
