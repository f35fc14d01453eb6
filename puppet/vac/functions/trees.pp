# @summary Sources of this host's file tree, of which Puppet takes the first that there is
#
# @param path
#   What the trees are below
# @param space
#   Name of the space
# @param subspaces
#   Names of subspaces
# @return [Array[String]]
#   PATH/FQDN, PATH/SPACE:SUBSPACE for each subspace, PATH/SPACE and PATH/site
function vac::trees(String[1] $path, Optional[String] $space, Array[String] $subspaces) >> Array[String[1]] {
  $of_space = $space ? {
    Undef   => [],
    ''      => [],
    default => $subspaces.map |$subspace| { "${space}:${subspace}" } + [$space],
  }
  ([$facts['networking']['fqdn']] + $of_space + ['site']).map |$tree| { "${path}/${tree}" }
}
