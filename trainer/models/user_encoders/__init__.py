"""User encoders by name: how clicked articles become a user; a new one is a file and a line."""

from trainer.config.parts import Registry

USER_ENCODERS: Registry = {
    "additive": "trainer.models.user_encoders.additive:Additive",
    "nrms": "trainer.models.user_encoders.nrms:Nrms",
    "last_k_mean": "trainer.models.user_encoders.last_k_mean:LastKMean",
}
