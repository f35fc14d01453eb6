# @summary Installs, configures and runs Vac, which makes a node a factory of virtual machines and containers
#
# The configuration comes from hashes (settings, machinetypes, pipes, secrets), from file trees (etc_path,
# machinetypes_path), as with Vac 3's class, or from both. README.md has examples.
#
# @param settings
#   Options of [settings]
# @param machinetypes
#   By name, options of [machinetype NAME]
# @param pipes
#   By prefix, options of [vacuum_pipe PREFIX]
# @param secrets
#   By section title, such as `settings` or `machinetype NAME`, options that only root may read. Hiera's value becomes
#   Sensitive by itself. Values in the other hashes may be Sensitive, too
# @param machinetype_files
#   By machinetype or prefix, then by path, such as `x509key.pem` or `files/user_data`: content, source, mode
# @param space
#   Name of the space; with hashes also vac_space, unless settings has that
# @param subspace
#   Name of the part of the space that this factory is in, for file trees
# @param subspace1
#   Further names of the kind, tried in order after subspace; so are the others
# @param subspace2
# @param subspace3
# @param subspace4
# @param subspace5
# @param subspace6
# @param subspace7
# @param subspace8
# @param subspace9
# @param etc_path
#   Source of trees FQDN, SPACE:SUBSPACE, SPACE and site, of which the first that there is becomes /etc/vac.d
# @param machinetypes_path
#   The same for STATE_DIR/machinetypes
# @param machinetypes_mode
#   Mode of what comes from machinetypes_path; by default nobody but root can read the files
# @param purge_config
#   Remove from /etc/vac.d what Puppet didn't put there; package managers' files and the sample stay
# @param purge_machinetypes
#   Remove from STATE_DIR/machinetypes what Puppet didn't put there
# @param nagios_nrpe
#   Have NRPE answer for check-vacd
# @param nrpe_command
#   The command's name in NRPE
# @param nrpe_package
#   NRPE's package; undef if something else installs it
# @param nrpe_service
#   NRPE's service, reloaded when its configuration changes
# @param nrpe_dir
#   Directory of NRPE's configuration
# @param apel_cert_path
#   Source of the certificate that sends accounting records; with apel_key_path it also sets ssmsend's timers up
# @param apel_key_path
#   Source of its key
# @param local_squid
#   Run Squid here, with the space's factories as clients and siblings. Either a switch, and /etc/squid/squid.conf.in
#   is there; or the source of trees as of etc_path, which have a file squid.conf.in
# @param manage_package
#   Install Vac's package
# @param package_name
#   Its name
# @param package_ensure
#   installed, latest or a version
# @param manage_service
#   Start vacd and enable it
# @param service_ensure
#   running or stopped
# @param service_enable
#   Start it at boot
class vac (
  Vac::Options                                                           $settings           = {},
  Hash[Vac::Name, Vac::Options]                                          $machinetypes       = {},
  Hash[Vac::Name, Vac::Options]                                          $pipes              = {},
  Sensitive[Hash[Vac::Title, Vac::Options]]                              $secrets            = Sensitive({}),
  Hash[Vac::Name, Hash[Pattern[/\A(files\/)?[^\/\s]+\z/], Vac::File]]    $machinetype_files  = {},
  Optional[String]                                                       $space              = undef,
  Optional[String]                                                       $subspace           = undef,
  Optional[String]                                                       $subspace1          = undef,
  Optional[String]                                                       $subspace2          = undef,
  Optional[String]                                                       $subspace3          = undef,
  Optional[String]                                                       $subspace4          = undef,
  Optional[String]                                                       $subspace5          = undef,
  Optional[String]                                                       $subspace6          = undef,
  Optional[String]                                                       $subspace7          = undef,
  Optional[String]                                                       $subspace8          = undef,
  Optional[String]                                                       $subspace9          = undef,
  Optional[String]                                                       $etc_path           = undef,
  Optional[String]                                                       $machinetypes_path  = undef,
  String[1]                                                              $machinetypes_mode  = 'u=rw,go=,a+X',
  Boolean                                                                $purge_config       = false,
  Boolean                                                                $purge_machinetypes = false,
  Vac::Switch                                                            $nagios_nrpe        = false,
  Pattern[/\A[\w-]+\z/]                                                  $nrpe_command       = 'check-vacd',
  Optional[String[1]]                                                    $nrpe_package       = undef,
  String[1]                                                              $nrpe_service       = 'nrpe',
  String[1]                                                               $nrpe_dir           = '/etc/nrpe.d',
  Optional[String]                                                       $apel_cert_path     = undef,
  Optional[String]                                                       $apel_key_path      = undef,
  Variant[Vac::Switch, Pattern[/\//]]                                    $local_squid        = false,
  Boolean                                                                $manage_package     = true,
  String[1]                                                              $package_name       = 'vac-factory',
  String[1]                                                              $package_ensure     = 'installed',
  Boolean                                                                $manage_service     = true,
  Enum['running', 'stopped']                                             $service_ensure     = 'running',
  Boolean                                                                $service_enable     = true,
) {
  $state_dir = $settings['state_dir'] ? {
    String[1] => $settings['state_dir'],
    default   => '/var/lib/vac',
  }
  $subspaces = [
    $subspace, $subspace1, $subspace2, $subspace3, $subspace4, $subspace5, $subspace6, $subspace7, $subspace8,
    $subspace9,
  ].filter |$name| { $name =~ String[1] }

  contain vac::install
  contain vac::config
  contain vac::service
  Class['vac::install'] -> Class['vac::config'] -> Class['vac::service']

  if vac::enabled($nagios_nrpe) {
    contain vac::nrpe
    Class['vac::install'] -> Class['vac::nrpe']
  }
  if $apel_cert_path =~ String[1] and $apel_key_path =~ String[1] {
    contain vac::apel
    Class['vac::config'] -> Class['vac::apel']
  }
  if $local_squid =~ Pattern[/\//] or vac::enabled($local_squid) {
    contain vac::squid
    Class['vac::config'] -> Class['vac::squid']
  }
}
