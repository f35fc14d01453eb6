# @summary Sends accounting records to APEL: ssmsend's certificate, configuration and timers
#
# The files are those of Vac's package. ssmsend itself (package apel-ssm) isn't installed here.
#
# @api private
class vac::apel {
  # The RPM's and the Debian package's
  $places = ['accounting', 'examples/accounting'].map |$place| { "file:///usr/share/doc/vac-factory/${place}" }
  $timers = ['vac-ssmsend.timer', 'vac-apel-sync.timer']

  File {
    ensure => file,
    owner  => 'root',
    group  => 'root',
    mode   => '0644',
  }

  file { '/etc/grid-security/vac-apel-cert.pem':
    source => $vac::apel_cert_path,
  }
  file { '/etc/grid-security/vac-apel-key.pem':
    mode      => '0600',
    show_diff => false,
    source    => $vac::apel_key_path,
  }
  file { ['/etc/apel', '/etc/grid-security']:
    ensure => directory,
    mode   => '0755',
  }
  file { '/etc/apel/vac-ssmsend-prod.cfg':
    source => $places.map |$place| { "${place}/vac-ssmsend-prod.cfg" },
  }
  # Vac 3's, for a broker that is no more
  file { '/etc/cron.d/vac-ssmsend':
    ensure => absent,
  }
  ['vac-ssmsend.service', 'vac-apel-sync.service', *$timers].each |$unit| {
    file { "/etc/systemd/system/${unit}":
      source => $places.map |$place| { "${place}/${unit}" },
    }
  }
  if $vac::manage_service {
    service { $timers:
      ensure    => $vac::service_ensure,
      enable    => $vac::service_enable,
      subscribe => $timers.map |$timer| { File["/etc/systemd/system/${timer}"] },
    }
  }
}
