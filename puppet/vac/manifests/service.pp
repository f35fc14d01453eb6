# @summary The services
#
# vacd reads its configuration again each minute, so nothing here restarts it.
#
# @api private
class vac::service {
  if $vac::manage_service {
    service { ['vac-machines', 'vacd']:
      ensure => $vac::service_ensure,
      enable => $vac::service_enable,
    }
  }
}
