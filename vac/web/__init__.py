"""What virtual machines find on the network: their metadata, features and the place for their outputs.

Two processes: vacd-metadata may read every file (user_data holds secrets) and write none, vacd-mjf may write
joboutputs and read no secrets.
"""
