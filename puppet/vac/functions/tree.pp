# @summary Attributes of a directory that has this host's file tree as its content, if there are trees
#
# @param path
#   What the trees are below; nothing if there are none
# @param space
#   Name of the space
# @param subspaces
#   Names of subspaces
# @param purge
#   Remove everything else from the directory
# @return [Hash]
function vac::tree(Optional[String] $path, Optional[String] $space, Array[String] $subspaces, Boolean $purge) >> Hash {
  $recurse = ($path =~ String[1] and !$purge) ? {
    true    => remote,
    default => $purge,
  }
  $source = $path ? {
    String[1] => { 'source' => vac::trees($path, $space, $subspaces) },
    default   => {},
  }
  $source + { 'recurse' => $recurse, 'purge' => $purge, 'force' => $purge }
}
