"""What is frozen, and where one can attach: any stock `transformers` encoder for text or images, or a decoder's states.

Nothing is imported here, so that reading a configuration does not load torch: `contune.backbone.config` holds
`ModelConfig`, `contune.backbone.backbone` the `Backbone`.
"""
