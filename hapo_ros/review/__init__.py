"""The review page: what happened in recorded episodes, and what people make of it.

``frames`` reads single images of a bag through its index, ``recorded`` everything else of it once,
``index`` knows a folder of bags, ``totals`` sums them up, ``training`` speaks to the optimizer,
``app`` answers the page (``static/``), ``guard`` turns strangers away, ``server`` runs it.
Reviews themselves are read and written by ``hapo_ros.episodes.reviews``.
"""
