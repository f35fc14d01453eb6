# @summary The configuration, and files of machinetypes
#
# Secret options have a file of their own, so that everybody on this host can read the rest and ask the space.
#
# @api private
class vac::config {
  $types = $vac::machinetypes.map |$name, $options| { ["machinetype ${name}", $options] }
  $pipes = $vac::pipes.map |$name, $options| { ["vacuum_pipe ${name}", $options] }
  $apart = $vac::secrets.unwrap
  $any = !($vac::settings.empty and $types.empty and $pipes.empty and $apart.empty)

  $settings = $vac::space ? {
    String[1] => { 'vac_space' => $vac::space } + $vac::settings,
    default   => $vac::settings,
  }
  $given = Hash([['settings', $settings]] + $types + $pipes)
  $public = Hash($given.map |$title, $options| {
    [$title, $options.filter |$name, $value| { $value !~ Sensitive }]
  })
  $secret = Hash(($given + $apart).keys.map |$title| {
    $own = $given[$title].lest || { {} }
    [$title, $own.filter |$name, $value| { $value =~ Sensitive } + $apart[$title].lest || { {} }]
  }).filter |$title, $options| { !$options.empty }

  $public_ensure = $any ? { true => file, default => absent }
  $secret_ensure = $secret.empty ? { true => absent, default => file }
  $etc_tree = vac::tree($vac::etc_path, $vac::space, $vac::subspaces, $vac::purge_config)
  $types_tree = vac::tree($vac::machinetypes_path, $vac::space, $vac::subspaces, $vac::purge_machinetypes)

  File {
    owner => 'root',
    group => 'root',
  }

  file { '/etc/vac.d':
    ensure => directory,
    ignore => ['*.sample', '*.dpkg-*', '*.rpmnew', '*.rpmorig', '*.rpmsave'],
    *      => $etc_tree,
  }
  file { '/etc/vac.d/puppet.conf':
    ensure  => $public_ensure,
    mode    => '0644',
    content => epp('vac/conf.epp', { 'sections' => $public }),
  }
  file { '/etc/vac.d/puppet_secrets.conf':
    ensure    => $secret_ensure,
    mode      => '0600',
    show_diff => false,
    content   => Sensitive(epp('vac/conf.epp', { 'sections' => $secret })),
  }

  if $types_tree['recurse'] or !$vac::machinetype_files.empty {
    file { $vac::state_dir:
      ensure => directory,
      mode   => '0755',
    }
    file { "${vac::state_dir}/machinetypes":
      ensure    => directory,
      mode      => $vac::machinetypes_mode,
      show_diff => false,
      *         => $types_tree,
    }
  }
  $vac::machinetype_files.each |$name, $files| {
    $directory = "${vac::state_dir}/machinetypes/${name}"
    file { [$directory, "${directory}/files"]:
      ensure => directory,
      mode   => '0711',
    }
    $files.each |$path, $file| {
      file { "${directory}/${path}":
        ensure    => file,
        show_diff => false,
        *         => { 'mode' => '0600' } + $file,
      }
    }
  }
}
