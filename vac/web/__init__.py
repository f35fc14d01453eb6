"""What is served over HTTP: to virtual machines their metadata, features and the place for their outputs; to people
and Prometheus what the factory is doing.

Three processes: vacd-metadata may read every file (user_data holds secrets) and write none, vacd-mjf may write
joboutputs and read no secrets, vacd-page reads what everybody may read and is the only one that serves strangers.
"""
