"""HTTP services: metadata, features and outputs for VMs; metrics and a status page for people.

Three processes: vacd-metadata may read every file (user_data holds secrets) and write none, vacd-mjf may write
joboutputs and read no secrets, vacd-page reads public files only and is the only one that serves everybody.
"""
