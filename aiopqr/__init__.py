from .credentials import Credential, CredentialPair, Parity, Secret
