# frozen_string_literal: true

require 'spec_helper'

describe 'vac' do
  let(:trees) { ['node1.example.org', 'vac01.example.org:gpu', 'vac01.example.org:big', 'vac01.example.org', 'site'] }

  context 'without parameters' do
    it { is_expected.to compile.with_all_deps }
    it { is_expected.to contain_package('vac-factory').that_comes_before('Class[vac::config]') }
    it { is_expected.to contain_service('vacd').with(ensure: 'running', enable: true) }
    it { is_expected.to contain_service('vac-machines').with(ensure: 'running', enable: true) }
    it { is_expected.to contain_file('/etc/vac.d').with(recurse: false, purge: false).without_source }
    it { is_expected.to contain_file('/etc/vac.d/puppet.conf').with_ensure('absent') }
    it { is_expected.to contain_file('/etc/vac.d/puppet_secrets.conf').with_ensure('absent') }
    it { is_expected.not_to contain_file('/var/lib/vac/machinetypes') }
    it { is_expected.not_to contain_class('vac::nrpe') }
    it { is_expected.not_to contain_class('vac::apel') }
    it { is_expected.not_to contain_class('vac::squid') }
  end

  context 'with hashes' do
    let(:params) do
      {
        space: 'vac01.example.org',
        settings: { 'hs06_per_processor' => 12.5, 'factories' => ['n1', 'n2'], 'user_data_option_a' => sensitive('hidden') },
        machinetypes: { 'prod' => { 'target_share' => 1, 'description' => :undef } },
        pipes: { 'lhcb' => { 'vacuum_pipe_url' => 'https://pipe.example.org/', 'user_data_proxy' => true } },
        secrets: sensitive({ 'machinetype prod' => { 'user_data_option_b' => 'dark' } }),
      }
    end

    it { is_expected.to compile.with_all_deps }
    it do
      is_expected.to contain_file('/etc/vac.d/puppet.conf').with(mode: '0644', content: <<~CONF)
        # Puppet writes this file. `vac config options` explains every option.

        [settings]
        vac_space = vac01.example.org
        hs06_per_processor = 12.5
        factories = n1 n2

        [machinetype prod]
        target_share = 1

        [vacuum_pipe lhcb]
        vacuum_pipe_url = https://pipe.example.org/
        user_data_proxy = yes
      CONF
    end
    it do
      is_expected.to contain_file('/etc/vac.d/puppet_secrets.conf').with(
        mode: '0600', show_diff: false, content: sensitive(<<~CONF)
          # Puppet writes this file. `vac config options` explains every option.

          [settings]
          user_data_option_a = hidden

          [machinetype prod]
          user_data_option_b = dark
        CONF
      )
    end
  end

  context 'with the file trees of Vac 3' do
    let(:params) do
      {
        space: 'vac01.example.org', subspace: 'gpu', subspace1: '', subspace9: 'big',
        etc_path: 'puppet:///modules/site/etc', machinetypes_path: '/srv/types',
      }
    end

    it { is_expected.to compile.with_all_deps }
    it do
      is_expected.to contain_file('/etc/vac.d').with(
        source: trees.map { |tree| "puppet:///modules/site/etc/#{tree}" }, recurse: 'remote', purge: false
      )
    end
    it do
      is_expected.to contain_file('/var/lib/vac/machinetypes').with(
        source: trees.map { |tree| "/srv/types/#{tree}" }, recurse: 'remote', purge: false, show_diff: false
      )
    end
    it { is_expected.to contain_file('/etc/vac.d/puppet.conf').with_ensure('absent') }
  end

  context 'with purging' do
    let(:params) { { purge_config: true, purge_machinetypes: true, settings: { 'state_dir' => '/data/vac' } } }

    it { is_expected.to contain_file('/etc/vac.d').with(recurse: true, purge: true, force: true) }
    it { is_expected.to contain_file('/data/vac/machinetypes').with(recurse: true, purge: true, force: true) }
  end

  context 'with files of machinetypes' do
    let(:params) do
      {
        machinetype_files: {
          'prod' => {
            'x509key.pem' => { 'source' => 'puppet:///modules/site/key' },
            'files/user_data' => { 'content' => '#!/bin/sh', 'mode' => '0644' },
          },
        },
      }
    end

    it { is_expected.to compile.with_all_deps }
    it { is_expected.to contain_file('/var/lib/vac/machinetypes').with(recurse: false, purge: false) }
    it { is_expected.to contain_file('/var/lib/vac/machinetypes/prod/x509key.pem').with(mode: '0600', show_diff: false) }
    it { is_expected.to contain_file('/var/lib/vac/machinetypes/prod/files/user_data').with(mode: '0644') }
  end

  context 'with a path that leaves the machinetype' do
    let(:params) { { machinetype_files: { 'prod' => { 'files/../../x' => { 'content' => '' } } } } }

    it { is_expected.to compile.and_raise_error(/machinetype_files/) }
  end

  { 'settings' => { 'Bad Name' => 1 }, 'machinetypes' => { 'PROD' => {} }, 'nagios_nrpe' => 'maybe' }.each do |name, value|
    context "with a wrong #{name}" do
      let(:params) { { name => value } }

      it { is_expected.to compile.and_raise_error(/parameter '#{name}'/) }
    end
  end

  [['RedHat', 'nrpe', '/etc/nrpe.d'], ['Debian', 'nagios-nrpe-server', '/etc/nagios/nrpe.d']].each do |family, nrpe, dir|
    context "with nagios_nrpe on #{family}" do
      let(:facts) { { 'os' => { 'family' => family } } }
      let(:params) { { nagios_nrpe: 'yes' } }

      it { is_expected.to compile.with_all_deps }
      it { is_expected.to contain_package(nrpe).that_comes_before("File[#{dir}/vac.cfg]") }
      it { is_expected.to contain_file("#{dir}/vac.cfg").with_content("command[check-vacd]=/usr/bin/check-vacd\n") }
      it { is_expected.to contain_exec("systemctl try-reload-or-restart #{nrpe}").with_refreshonly(true) }
    end
  end

  context "with APEL's certificate and key" do
    let(:params) { { apel_cert_path: '/srv/cert.pem', apel_key_path: '/srv/key.pem' } }

    it { is_expected.to compile.with_all_deps }
    it { is_expected.to contain_file('/etc/grid-security/vac-apel-key.pem').with(source: '/srv/key.pem', mode: '0600') }
    it { is_expected.to contain_service('vac-ssmsend.timer').with_enable(true) }
    it { is_expected.to contain_service('vac-apel-sync.timer').with_enable(true) }
  end

  context 'with a local Squid' do
    let(:params) { { local_squid: true } }

    it { is_expected.to compile.with_all_deps }
    it { is_expected.to contain_exec('vac squid-conf').that_notifies('Service[squid]') }
    it { is_expected.not_to contain_file('/etc/squid/squid.conf.in') }
  end

  context 'with a local Squid and its file trees' do
    let(:params) { { space: 'vac01.example.org', subspace: 'gpu', subspace2: 'big', local_squid: '/srv/squid' } }

    it do
      is_expected.to contain_file('/etc/squid/squid.conf.in').with(
        source: trees.map { |tree| "/srv/squid/#{tree}/squid.conf.in" }
      )
    end
  end

  context 'with neither package nor services' do
    let(:params) { { manage_package: false, manage_service: false } }

    it { is_expected.not_to contain_package('vac-factory') }
    it { is_expected.not_to contain_service('vacd') }
  end
end
